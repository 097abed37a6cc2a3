"""Soil survey sites and their horizons, in PostGIS."""

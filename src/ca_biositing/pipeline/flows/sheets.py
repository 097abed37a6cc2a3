"""The spreadsheets that flows read from, by title."""

AIM_1 = "Aim 1-Feedstock Collection and Processing Data-BioCirV"

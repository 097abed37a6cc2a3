"""The tables of biocirv_db, and the connection to it."""

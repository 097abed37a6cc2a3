"""The ETL pipeline, which loads lab and field data from spreadsheets into biocirv_db."""

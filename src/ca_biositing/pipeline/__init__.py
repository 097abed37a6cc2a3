"""Lab and field data on its way from spreadsheets into biocirv_db."""

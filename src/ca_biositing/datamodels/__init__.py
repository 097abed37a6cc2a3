"""What biocirv_db holds: its tables, and how to reach them."""

"""Reports: tables, figures, pages and receipts, each computed as numbers first and drawn afterwards."""

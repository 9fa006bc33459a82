"""Pages and files for the Hub: what a folder holds, a page that tells the truth about it, and the upload."""

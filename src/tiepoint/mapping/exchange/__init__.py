"""What other programs read: COLMAP models, HDF5 files of hloc, a web page."""

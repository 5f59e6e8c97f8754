"""The HDF5 file: reserving, writing, splitting by patient."""

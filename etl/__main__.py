"""`python -m etl` is `dicom-etl`."""

from etl.cli import main

if __name__ == "__main__":
    main()

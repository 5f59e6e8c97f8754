import subprocess
import sys

PROBE = """
import sys
import loader
forbidden = {"etl", "pydicom", "click", "PIL", "tqdm", "xxhash", "torch", "dask", "distributed"}
print(sorted(forbidden & {name.partition(".")[0] for name in sys.modules}))
print(loader.__all__)
"""


def test_importing_loader_loads_nothing_of_the_build():
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    loaded, public = run.stdout.splitlines()
    assert loaded == "[]"
    assert public == "['Batches', 'Dataset', 'LoaderError', '__version__', 'open_dataset']"

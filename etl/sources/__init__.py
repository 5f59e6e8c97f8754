"""Where samples come from: layouts of input folders, and reading their files safely."""

"""Second implementations written from the papers' equations in plain NumPy. Importing trueline here is forbidden."""

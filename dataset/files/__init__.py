"""Files: downloads, JSON lines, arrays written into place, flags of the builders."""

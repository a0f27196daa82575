"""Model families, one file each, as data: what every part of the package knows of a family is read from here."""

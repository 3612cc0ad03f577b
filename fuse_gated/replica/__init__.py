"""A copy of an export beside the export itself: what is to be done where the two differ. Pure: no file is opened here."""

"""Pictures with labels and a frozen network enter; a classifier of which some blocks were trained leaves."""

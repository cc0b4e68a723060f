"""What a hospital hands over, as a catalogue and as pixels."""

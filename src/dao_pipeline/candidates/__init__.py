"""From compositions to screened and ranked candidates."""

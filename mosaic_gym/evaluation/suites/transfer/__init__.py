"""Does what was learned in the dream work in the engine?"""

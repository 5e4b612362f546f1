"""Can it be smaller and faster?"""

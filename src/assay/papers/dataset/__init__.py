"""Which examples should it be trained on?"""

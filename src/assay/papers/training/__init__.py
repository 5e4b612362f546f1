"""How should it be trained?"""

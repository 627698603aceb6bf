"""The loops: probe, finetune, merge, evaluate, and the searches and the demo made of them.

Each module is imported where it is used, so that asking for one loop does not load the others.
"""

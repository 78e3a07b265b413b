"""Loops on tiny language models beside the exact simulator: do they show the same signs?"""

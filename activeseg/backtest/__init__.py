"""Replays of the loop on images whose masks are known: what would choosing by another strategy have bought?"""

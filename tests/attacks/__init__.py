"""What a hostile tenant does to its neighbour: `make attack`, or `python -m attacks`.

A real platform with two tenants. One stores and loads blocks all the time; the other attacks the
hot tier with all that its node key gives it. The table says what the neighbour felt.
"""

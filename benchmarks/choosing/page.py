"""stub"""
def tables(x):
    import json; return json.dumps(x, indent=1)[:30000]

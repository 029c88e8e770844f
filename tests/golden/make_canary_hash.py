"""Print the canary and the library versions it belongs to, to be stored in canary.json.

    python tests/golden/make_canary_hash.py > tests/golden/canary.json

A change under the same versions means that every stored view now renders differently: bump the store's format instead.
"""

import json

from beit.common.views import compute_canary, replay_versions

if __name__ == "__main__":
    print(json.dumps({"canary": compute_canary(), "versions": replay_versions()}, indent=2))

"""Training: the loop, and the one file each that puts it on Ray Data and Ray Train.

Ray reads its authentication mode once, when it is first imported, so it is chosen here, before any module of this package does that:
a private Ray asks for a token, since its ports listen on every interface of the machine. Ray makes one for the user where there is
none. A job that was submitted (RAY_ADDRESS), or a program that imported ray first, has chosen already.
"""

import os
import sys

if "ray" not in sys.modules and "RAY_ADDRESS" not in os.environ:
    os.environ.setdefault("RAY_AUTH_MODE", "token")

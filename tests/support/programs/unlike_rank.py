"""`vpred-train` as one rank of a job whose rank 1 has no compiled operations. The first argument says what else is
so: "agree", nothing; "silent", the ranks do not agree on how to update; the others are `vpred-train`'s."""

import sys
from pathlib import Path

from launcher.contract.environment import environment
from launcher.contract.identity import read_identity
from vpred_train.engine import kernel_agreement as agreement
from vpred_train.kernels import library

if __name__ == "__main__":
    if read_identity(environment()).rank == 1:
        library.library_path = lambda: Path("/nowhere")
    if sys.argv[1] == "silent":
        agreement.agree_on_updates = lambda collective, hostname: None
    from vpred_train.commands.train import main

    main(sys.argv[2:])

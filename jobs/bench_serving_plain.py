"""The plain server that jobs/bench_serving.py compares with: FastAPI and uvicorn, one model per worker, nothing else.

python jobs/bench_serving_plain.py CHECKPOINT PORT WORKERS
"""

import io
import os
import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image

app = FastAPI()
if "RAYTERS_PLAIN" in os.environ:
    import torch

    from rayters.inference.predict import predict_picture
    from rayters.inference.tiling import Tiling
    from rayters.training.model import load_model

    torch.set_num_threads(1)
    model = load_model(os.environ["RAYTERS_PLAIN"])


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/predict")
async def predict(request: Request) -> Response:
    picture = np.asarray(Image.open(io.BytesIO(await request.body())))
    labels = predict_picture(model, picture[None], tiling=Tiling(annotators=False)).labels
    out = io.BytesIO()
    Image.fromarray(labels).save(out, "PNG", compress_level=1)
    return Response(out.getvalue(), media_type="image/png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] == ["--help"] else 2)
    os.environ["RAYTERS_PLAIN"] = sys.argv[1]
    here = os.path.dirname(os.path.abspath(__file__))
    patience = {
        "timeout_worker_healthcheck": 120
    }  # importing torch takes longer than uvicorn waits for a worker by itself
    workers = int(sys.argv[3])
    uvicorn.run(
        "bench_serving_plain:app", port=int(sys.argv[2]), workers=workers, log_level="error", app_dir=here, **patience
    )

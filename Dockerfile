# Images of Millrace: `docker build --target beam-worker|trainer|server .`
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1
WORKDIR /opt/millrace
COPY constraints.txt ./
RUN pip install --no-cache-dir --no-deps -r constraints.txt

FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ libgtest-dev ninja-build
COPY . .
RUN pip wheel --no-deps --no-build-isolation -w /wheels .

FROM base AS millrace
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/millrace-*.whl
USER nobody
ENTRYPOINT ["millrace"]

# A Beam SDK harness: runners start it with `--id`, `--logging_endpoint` and the like.
FROM base AS beam-worker
# Threads share two heaps (runtime/memory.py).
ENV ARROW_DEFAULT_MEMORY_POOL=system MALLOC_ARENA_MAX=2
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/millrace-*.whl
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM millrace AS trainer
CMD ["train", "--help"]

FROM millrace AS server
CMD ["serve", "--help"]

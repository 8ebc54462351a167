# Images of Millrace: `docker build --target beam-worker|trainer|server .`
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1
WORKDIR /opt/millrace
COPY constraints.txt ./
RUN pip install --no-cache-dir --no-deps -r constraints.txt

# A wheel from an sdist, as users get it: what the sdist lacks is missed here.
FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ ninja-build
COPY . .
RUN python setup.py -q sdist -d /sdist
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels /sdist/millrace-*.tar.gz

FROM base AS millrace
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/millrace-*.whl
USER nobody
ENTRYPOINT ["millrace"]

# A Beam SDK harness: runners start it with flags such as `--id` and `--logging_endpoint`.
FROM base AS beam-worker
# Threads share two heaps: with one per thread, a worker holds twice the memory (runtime/memory.py).
ENV ARROW_DEFAULT_MEMORY_POOL=system MALLOC_ARENA_MAX=2
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/millrace-*.whl
ENTRYPOINT ["/opt/apache/beam/boot"]

FROM millrace AS trainer
CMD ["train", "--help"]

FROM millrace AS server
CMD ["serve", "--help"]

# syntax=docker/dockerfile:1
# One image for all processes: edgetun, edgetun-agent, edgetun-exitnode, edgetun-operator, edgetun-control.
#   docker build -t edgetun:dev .
#   docker run --rm edgetun:dev edgetun-agent --help
# The tests make the same image without a builder (tests/support/image.py): they read the last stage's ENV, USER, WORKDIR and CMD.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/edgetun
WORKDIR /src
# The dependencies alone first: they change seldom, and their layer is kept.
COPY pyproject.toml ./
RUN python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' > /requirements.txt \
 && /opt/edgetun/bin/pip install -r /requirements.txt
COPY LICENSE README.md ./
COPY core core
COPY operator operator
COPY exitnode exitnode
COPY agent agent
COPY standalone standalone
RUN /opt/edgetun/bin/pip install --no-deps . \
 && /opt/edgetun/bin/pip uninstall --yes pip \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/edgetun/lib

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="edgetun" \
      org.opencontainers.image.description="A tunnel whose edge computes: operator, control, exit node, agent" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/edgetun /opt/edgetun
# The root file system may be read-only: bytecode is compiled already, and what is written goes to /tmp and to mounted folders.
ENV PATH=/opt/edgetun/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    EDGETUN_METRICS=0.0.0.0:9090
WORKDIR /
# A number, since the kubelet can check runAsNonRoot for nothing else.
USER 65532:65532
EXPOSE 8080 8443 7443 7443/udp 7444 9090
# Of the process's admin listener (EDGETUN_METRICS); Kubernetes uses probes of its own instead.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/healthz', timeout=4)"]
CMD ["edgetun", "--help"]

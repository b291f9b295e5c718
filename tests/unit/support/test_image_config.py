"""What the end-to-end tests read from a Dockerfile."""

from __future__ import annotations

import pytest

from support.image import STANDARD_PATH, ImageConfig, ImageError, build_image, read_dockerfile

DOCKERFILE = r"""
# syntax=docker/dockerfile:1
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS build
ENV LEFT=behind
USER root
RUN pip install . \
    # a comment between
    && true

FROM python:${PYTHON}-slim
ARG UID=65532
COPY --from=build /opt/edgetun /opt/edgetun
ENV PATH=/opt/edgetun/bin:$PATH \
    PYTHONUNBUFFERED="1" NOTE='two words'
ENV OLD the old form
WORKDIR /tmp
USER ${UID}:${UID}
HEALTHCHECK CMD ["edgetun", "--version"]
ENTRYPOINT ["edgetun"]
CMD ["serve", "--listen", "0.0.0.0"]
"""


def test_the_last_stage_of_a_dockerfile_is_the_image() -> None:
    assert read_dockerfile(DOCKERFILE) == ImageConfig(
        user="65532:65532",
        workdir="/tmp",
        entrypoint=("edgetun",),
        cmd=("serve", "--listen", "0.0.0.0"),
        env={
            "PATH": f"/opt/edgetun/bin:{STANDARD_PATH}",
            "PYTHONUNBUFFERED": "1",
            "NOTE": "two words",
            "OLD": "the old form",
        },
    )


@pytest.mark.parametrize("user", ["", "USER root", "USER 0", "USER edgetun"])
def test_a_user_that_the_kubelet_cannot_check_is_refused(tmp_path, user) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM scratch\n{user}\n")
    with pytest.raises(ImageError, match="runAsNonRoot"):
        build_image(tmp_path / "Dockerfile")

# The spanflame binary and nothing else: no shell, no package manager, no second registry.
# BuildKit is needed (the default builder since Docker 23) for the cache mounts.

# The Collector's image, which docker-compose.yml names. Only the target of that name uses it.
ARG COLLECTOR=scratch

FROM --platform=$BUILDPLATFORM golang:1.26.5-bookworm AS build
WORKDIR /src

# The modules are a layer of their own: a change of the code alone downloads nothing.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download

COPY . .
ARG TARGETOS
ARG TARGETARCH
# -s and -w leave out the linker's symbol table and DWARF. Profiles keep their function names, files
# and lines: those come from the runtime's own table, which is always there.
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags="-s -w" -o /out/spanflame ./cmd/spanflame \
    && mkdir /out/data

# The Collector with our binary beside it, which checks its health: it has no program that could.
FROM ${COLLECTOR} AS collector
COPY --from=build /out/spanflame /spanflame

FROM scratch
# For servers reached over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/spanflame /spanflame
# A new named volume takes the owner of the directory it is mounted on; without this one it would be
# root's, and the service could not write its spool.
COPY --from=build --chown=65532:65532 /out/data /data

ARG VERSION=dev
LABEL org.opencontainers.image.title="spanflame" \
      org.opencontainers.image.description="Continuous profiling for Go services: slow traces open onto their flame graphs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

USER 65532:65532
ENTRYPOINT ["/spanflame"]

# An image with the spanflame binary only: no shell, no package manager.
# BuildKit is needed (the default builder since Docker 23) for the cache mounts.

# The Collector's image, which docker-compose.yml names. Only the target of that name uses it.
ARG COLLECTOR=scratch

FROM --platform=$BUILDPLATFORM golang:1.26.5-bookworm AS build
WORKDIR /src

# The modules have their own layer, so that a change to the code downloads nothing.
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download

COPY . .
ARG TARGETOS
ARG TARGETARCH
# -s and -w omit the symbol table and DWARF. Profiles still have function names, files and lines, which come
# from the runtime's own table.
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags="-s -w" -o /out/spanflame ./cmd/spanflame \
    && mkdir /out/data

# The Collector with our binary, which checks its health: its image has no program for that.
FROM ${COLLECTOR} AS collector
COPY --from=build /out/spanflame /spanflame

FROM scratch
# For connections over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/spanflame /spanflame
# A new named volume gets the owner of the directory where it is mounted. Without this directory the owner would be
# root, and the service could not write its spool.
COPY --from=build --chown=65532:65532 /out/data /data

ARG VERSION=dev
LABEL org.opencontainers.image.title="spanflame" \
      org.opencontainers.image.description="Continuous profiling for Go services: slow traces open onto their flame graphs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

USER 65532:65532
ENTRYPOINT ["/spanflame"]

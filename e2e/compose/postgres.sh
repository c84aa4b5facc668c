#!/bin/sh
# The entry point of the image that stands in for PostgreSQL's in the test of docker-compose.yml: like that
# image's own it makes the database on an empty volume, then becomes the server.
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
	initdb -D "$PGDATA" -U "$POSTGRES_USER" --auth="$POSTGRES_HOST_AUTH_METHOD" --no-locale -E UTF8
	echo "host all all all $POSTGRES_HOST_AUTH_METHOD" >> "$PGDATA/pg_hba.conf"
	echo "CREATE DATABASE $POSTGRES_DB;" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c 'listen_addresses=*'

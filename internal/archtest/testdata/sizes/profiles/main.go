package main

import (
	"context"
	"log"
	"net/http"

	"go.opentelemetry.io/otel"

	"spanflame/agent"
)

func main() {
	a, err := agent.Start(context.Background(), agent.Config{ServiceName: "hello"})
	if err != nil {
		log.Fatal(err)
	}
	otel.SetTracerProvider(a.TracerProvider(otel.GetTracerProvider()))
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello\n")) })
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}

package main

import (
	"log"
	"net/http"

	otelpyroscope "github.com/grafana/otel-profiling-go"
	"github.com/grafana/pyroscope-go"
	"go.opentelemetry.io/otel"
)

func main() {
	if _, err := pyroscope.Start(pyroscope.Config{ApplicationName: "hello", ServerAddress: "http://127.0.0.1:4040"}); err != nil {
		log.Fatal(err)
	}
	otel.SetTracerProvider(otelpyroscope.NewTracerProvider(otel.GetTracerProvider()))
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello\n")) })
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}

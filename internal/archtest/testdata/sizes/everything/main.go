package main

import (
	"context"
	"log"
	"net/http"

	"spanflame/agent"
	"spanflame/agent/otelsetup"
)

func main() {
	if _, err := otelsetup.Start(context.Background(), otelsetup.Config{Agent: agent.Config{ServiceName: "hello"}}); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello\n")) })
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}

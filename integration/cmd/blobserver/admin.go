package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"blobmount/integration/blobserver"
)

// startAdmin serves the counters on a listener of their own, so that asking for them is no request to the service:
//
//	GET  /-/stats   blobserver.Stats as JSON
//	POST /-/reset   sets all counters to zero
//
// There are no credentials, so the address must be a loopback address. stop ends it.
func startAdmin(listen string, s *blobserver.Server) (url string, stop func(), err error) {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return "", nil, err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", nil, errors.New("blobserver: --admin must be a loopback address: it asks for no credentials")
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return "", nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /-/stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Stats()) // an error: the client has gone
	})
	mux.HandleFunc("POST /-/reset", func(w http.ResponseWriter, _ *http.Request) {
		s.ResetStats()
		w.WriteHeader(http.StatusNoContent)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends by Close
	}()
	return "http://" + l.Addr().String(), func() {
		_ = server.Close()
		<-done
	}, nil
}

// Command hello is the quickstart's workload, the only program of its image. It says
// which version it is, and gets healthy late or never where its release says so.
//
//	VERSION          what it says
//	HEALTHY_AFTER_S  it answers 503 until then; `never`: for ever
//
// `hello check` is its health check: exit status 0 if it is healthy.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const address = ":8080"

type answer struct {
	Version  string            `json:"version"`
	Hostname string            `json:"hostname"`
	Env      map[string]string `json:"env"`
	Uptime   float64           `json:"uptime_s"`
}

func main() {
	var err error
	if len(os.Args) == 2 && os.Args[1] == "check" {
		err = check()
	} else {
		err = serve(time.Now())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

// serve answers until a signal comes; requests under way are answered first.
func serve(start time.Time) error {
	healthy, err := healthyAfter(os.Getenv("HEALTHY_AFTER_S"))
	if err != nil {
		return err
	}
	hostname, _ := os.Hostname()
	shown := map[string]string{}
	for _, name := range []string{"MESSAGE", "COLOUR"} {
		if value, given := os.LookupEnv(name); given {
			shown[name] = value
		}
	}
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		age := time.Since(start)
		w.Header().Set("Content-Type", "application/json")
		if !healthy(age) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer{os.Getenv("VERSION"), hostname, shown, age.Seconds()})
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	drained := make(chan error, 1)
	go func() {
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		drained <- server.Shutdown(limit)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return <-drained
}

func healthyAfter(text string) (func(time.Duration) bool, error) {
	switch text {
	case "":
		return func(time.Duration) bool { return true }, nil
	case "never":
		return func(time.Duration) bool { return false }, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, fmt.Errorf("HEALTHY_AFTER_S: %q is no number of seconds", text)
	}
	return func(age time.Duration) bool { return age.Seconds() >= seconds }, nil
}

func check() error {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get("http://localhost" + address + "/health")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", response.Status)
	}
	return nil
}

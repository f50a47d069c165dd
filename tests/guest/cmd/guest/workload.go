package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"time"

	"refguest/internal/conf"
)

// answer is the part of the workload's answer that never changes, encoded once:
// the load generator asks hundreds of times a second of an emulated processor. What
// steers the guest is none of the workload's environment.
type answer struct {
	prefix []byte
}

func newAnswer(ext *conf.External, env map[string]string) answer {
	hostname, _ := os.Hostname()
	shown := make(map[string]string, len(env))
	for name, value := range env {
		if !conf.Steers(name) {
			shown[name] = value
		}
	}
	raw, err := json.Marshal(struct {
		Version  string            `json:"version"`
		ID       string            `json:"id"`
		Hostname string            `json:"hostname"`
		Env      map[string]string `json:"env"`
		Secrets  map[string]string `json:"secrets"`
	}{ext.Metadata["tag"], ext.Metadata["id"], hostname, shown, secretDigests(ext.Secrets)})
	if err != nil {
		raw = []byte("{}")
	}
	return answer{prefix: raw[:len(raw)-1]}
}

// secretDigests shows which value arrived without showing the value.
func secretDigests(secrets map[string]string) map[string]string {
	out := make(map[string]string, len(secrets))
	for name, value := range secrets {
		sum := sha256.Sum256([]byte(value))
		out[name] = hex.EncodeToString(sum[:])
	}
	return out
}

func (a answer) body(age time.Duration, remote string) []byte {
	out := make([]byte, 0, len(a.prefix)+96)
	out = append(out, a.prefix...)
	out = append(out, `,"uptime_s":`...)
	out = strconv.AppendFloat(out, age.Seconds(), 'f', 3, 64)
	out = append(out, `,"remote":`...)
	out = strconv.AppendQuote(out, remote)
	return append(out, '}', '\n')
}

// workloadHandler plays the workload, on TLS and on the plain inbound ports.
func (g *guest) workloadHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.holdIfFrozen()
		if up, status := g.workloadUp(); !up {
			g.refuse(w, status)
			return
		}
		switch r.URL.Path {
		case "/stream":
			g.stream(w, r)
		case "/echo":
			g.echo(w, r)
		default:
			body := g.current().answer.body(g.age(), r.RemoteAddr)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body)
		}
	})
}

// refuse is what the public shim answers while it lets nothing through, and the played
// workload while it is not well.
func (g *guest) refuse(w http.ResponseWriter, status string) {
	writeJSON(w, http.StatusServiceUnavailable, refusal{
		Error: refusalError{Message: "Workload proxy is not ready.", Type: "server_error", Status: status},
		Boot:  g.boot.Snapshot(),
	})
}

// holdIfFrozen never answers once the guest is told to freeze: the connection
// stays open and silent, as when a process hangs.
func (g *guest) holdIfFrozen() {
	if table := g.table(); table.FreezeAfter > 0 && g.age() >= table.FreezeAfter {
		<-g.stopped
	}
}

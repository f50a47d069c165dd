package main

import (
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"refguest/internal/stages"
)

const wellKnown = "/.well-known/"

// publicHandler is what TLS on 443 serves in one run of the shim: the contract's
// documents, and the workload for every other path.
func (g *guest) publicHandler(run *shimRun) http.Handler {
	documents := g.documents()
	workload := g.shimRules(g.upstream())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.holdIfFrozen()
		document, known := documents[r.URL.Path]
		if run.reached(shimObserving) {
			w.Header().Set("Tinfoil-Pt", g.predicate())
		}
		switch {
		case !run.reached(shimObserving):
			g.starting(w, r)
		case known:
			document(w, r)
		case run.reached(shimProxying):
			workload.ServeHTTP(w, r)
		case g.boot.Snapshot().Verdict() == stages.Failed:
			g.refuse(w, stages.Failed)
		default:
			g.refuse(w, stages.Pending)
		}
	})
}

func (g *guest) documents() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		wellKnown + "tinfoil-boot-stages": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, g.boot.Snapshot())
		},
		wellKnown + "tinfoil-certificate": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, map[string]string{"certificate": g.identity.pem()})
		},
		wellKnown + "tinfoil-containers":  g.serveContainers,
		wellKnown + "tinfoil-metrics":     g.serveMetrics,
		wellKnown + "tinfoil-attestation": g.attestation,
	}
}

// shimRules are the answers that the shim gives itself: 404 for what is not listed,
// 401 for what is guarded. GUEST_HEALTH_HOST adds a workload that is particular
// about the Host on its health path.
func (g *guest) shimRules(workload http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := g.current()
		if p.table.ShimRules && !p.workload.Shim.Lets(r.URL.Path) {
			shimError(w, http.StatusNotFound, "Not found.")
			return
		}
		if p.table.ShimRules && !g.lets(w, r, p) {
			return
		}
		if host := p.table.HealthHost; host != "" && strings.HasSuffix(r.URL.Path, "health") && r.Host != host {
			http.Error(w, "no such host here", http.StatusBadRequest)
			return
		}
		workload.ServeHTTP(w, r)
	})
}

// lets looks at the key of a request, where it needs one.
func (g *guest) lets(w http.ResponseWriter, r *http.Request, p *plan) bool {
	token, guarded := bearer(r), p.workload.Shim.Guards(r.URL.Path)
	switch {
	case token == "" && (guarded || p.workload.Shim.Counts()):
		shimError(w, http.StatusUnauthorized, "API key is required.")
		return false
	case guarded && (p.table.APIKey == "" || !same(token, p.table.APIKey)):
		shimError(w, http.StatusUnauthorized, "Incorrect API key provided.")
		return false
	}
	return true
}

// shimError has the form of the public shim's own errors.
func shimError(w http.ResponseWriter, status int, message string) {
	kind := "invalid_request_error"
	if status >= 500 {
		kind = "server_error"
	}
	writeJSON(w, status, map[string]interface{}{
		"error": map[string]string{"message": message, "type": kind},
	})
}

// serveMetrics wants the key as a Bearer token where the host gave one.
func (g *guest) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if p := g.current(); p != nil && p.table.GuardsMetrics {
		if key := p.external.Secret("METRICS_API_KEY"); key != "" && !same(bearer(r), key) {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
	}
	writeJSON(w, http.StatusOK, g.metrics())
}

func bearer(r *http.Request) string {
	header := r.Header.Get("Authorization")
	if len(header) < 7 || !strings.EqualFold(header[:7], "bearer ") {
		return ""
	}
	return strings.TrimSpace(header[7:])
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// serveContainers has nothing to serve before the containers' stage is over, nor
// ever where it failed: it is published only after it.
func (g *guest) serveContainers(w http.ResponseWriter, _ *http.Request) {
	if g.table().ContainersBoot && !g.boot.Done("containers") {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "container status not available\n")
		return
	}
	writeJSON(w, http.StatusOK, g.containerList())
}

// refusal is the contract's body of a 503.
type refusal struct {
	Error refusalError `json:"error"`
	Boot  interface{}  `json:"boot,omitempty"`
}

type refusalError struct {
	Message string `json:"message"`
	Type    string `json:"type"`
	Status  string `json:"status"`
}

func writeJSON(w http.ResponseWriter, status int, value interface{}) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

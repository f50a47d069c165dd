package main

import (
	"encoding/json"
	"net/http"
)

const wellKnown = "/.well-known/"

// publicHandler is what TLS on 443 serves: the contract's documents, and the
// workload for every other path.
func (g *guest) publicHandler() http.Handler {
	mux := http.NewServeMux()
	document := func(name string, make func() interface{}) {
		mux.HandleFunc(wellKnown+name, func(w http.ResponseWriter, r *http.Request) {
			g.holdIfFrozen()
			writeJSON(w, http.StatusOK, make())
		})
	}
	document("tinfoil-boot-stages", func() interface{} { return g.boot.Snapshot() })
	document("tinfoil-containers", func() interface{} { return g.containerList() })
	document("tinfoil-metrics", func() interface{} { return g.metrics() })
	document("tinfoil-certificate", func() interface{} {
		return map[string]string{"certificate": g.identity.pem()}
	})
	mux.HandleFunc(wellKnown+"tinfoil-attestation", g.attestation)
	mux.Handle("/", g.workloadHandler())
	return mux
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

package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"refguest/internal/stages"
)

// How far one run of the shim has come.
const (
	shimStarting  = int32(iota) // an ephemeral key; the boot stages only
	shimObserving               // the identity; the contract's documents
	shimProxying                // the workload too
)

// shim is what listens on 443. It begins with a key of its own, takes the guest's
// identity once that is published, and lets the workload through once every stage
// before its own is settled. It may be restarted, and then begins so again.
type shim struct {
	mu      sync.Mutex
	run     *shimRun
	stopped bool
}

// shimRun is the shim from one start to its end.
type shimRun struct {
	server    *http.Server
	ephemeral *tls.Certificate
	phase     int32
	over      chan struct{}
}

func (r *shimRun) reached(phase int32) bool { return atomic.LoadInt32(&r.phase) >= phase }

// startShim serves 443; it does nothing once the guest parked or is going down.
func (g *guest) startShim() error {
	ephemeral, err := selfSigned()
	if err != nil {
		return err
	}
	g.shim.mu.Lock()
	defer g.shim.mu.Unlock()
	if g.shim.stopped || g.shim.run != nil {
		return nil
	}
	listener, err := net.Listen("tcp", ":443")
	if err != nil {
		return err
	}
	run := &shimRun{ephemeral: ephemeral, over: make(chan struct{})}
	run.server = newServer(g.publicHandler(run))
	run.server.TLSConfig = g.tlsConfig(run)
	g.servers.add(run.server)
	g.shim.run = run
	if !g.table().Early443 {
		atomic.StoreInt32(&run.phase, shimObserving)
	}
	go func() { _ = run.server.ServeTLS(listener, "", "") }()
	go g.advance(run)
	g.console.Printf("serving on 443")
	return nil
}

// stopShim closes 443 and every connection to it; for good if it says so.
func (g *guest) stopShim(forGood bool) {
	g.shim.mu.Lock()
	defer g.shim.mu.Unlock()
	g.shim.stopped = g.shim.stopped || forGood
	if run := g.shim.run; run != nil {
		close(run.over)
		run.server.Close()
		g.servers.remove(run.server)
		g.shim.run = nil
	}
}

// restartShim leaves 443 refused for as long as a supervisor waits before it starts
// a service again.
func (g *guest) restartShim(pause time.Duration) {
	g.stopShim(false)
	g.console.Printf("the shim restarts in %s", pause)
	time.Sleep(pause)
	if err := g.startShim(); err != nil {
		g.console.Printf("the shim did not restart: %v", err)
	}
}

// advance takes one run of the shim through its phases, looking now and then as the
// public shim does.
func (g *guest) advance(run *shimRun) {
	begin := time.Now()
	published := func() bool { return atomic.LoadInt32(&g.identity.published) == 1 }
	if !g.poll(run, published) {
		return
	}
	atomic.StoreInt32(&run.phase, shimObserving)
	if !g.poll(run, func() bool { return g.boot.SettledBut("shim") }) {
		return
	}
	pending := g.boot.StatusOf("shim") == stages.Pending
	if g.boot.Snapshot().Verdict() == stages.Failed {
		if !pending {
			return
		}
		g.boot.Settle("shim", stages.Failed, "a boot stage failed: the proxy is not enabled", time.Since(begin))
		return
	}
	if g.table().FailStage == "shim" {
		g.boot.Settle("shim", stages.Failed, toldToFail, time.Since(begin))
		return
	}
	atomic.StoreInt32(&run.phase, shimProxying)
	if pending {
		g.boot.Settle("shim", stages.OK, "", time.Since(begin))
		g.console.Printf("boot complete")
	}
}

// poll waits until something holds; false if the run is over first.
func (g *guest) poll(run *shimRun, holds func() bool) bool {
	pause := g.table().ShimPoll
	if pause < time.Millisecond {
		pause = time.Millisecond
	}
	for {
		select {
		case <-run.over:
			return false
		case <-time.After(pause):
		}
		if holds() {
			return true
		}
	}
}

func (g *guest) tlsConfig(run *shimRun) *tls.Config {
	return &tls.Config{
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if run.reached(shimObserving) {
				return g.identity.get(hello)
			}
			return run.ephemeral, nil
		},
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		// The cheapest key exchanges: a handshake is the dearest thing here.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
	}
}

// starting answers what the shim answers before it has an identity.
func (g *guest) starting(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == wellKnown+"tinfoil-boot-stages" {
		writeJSON(w, http.StatusOK, g.boot.Snapshot())
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(w, "shim is starting, waiting for boot to complete\n")
}

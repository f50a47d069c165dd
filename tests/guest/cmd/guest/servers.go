package main

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"refguest/internal/machine"
)

// serverSet holds what must be closed before the power goes.
type serverSet struct {
	mu      sync.Mutex
	servers []*http.Server
	relays  []net.Listener
	taken   map[net.Conn]struct{} // connections that a handler took over
}

func (s *serverSet) add(server *http.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers = append(s.servers, server)
}

func (s *serverSet) addRelay(listener net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.relays = append(s.relays, listener)
}

func (s *serverSet) remove(server *http.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, one := range s.servers {
		if one == server {
			s.servers = append(s.servers[:i:i], s.servers[i+1:]...)
			return
		}
	}
}

func (s *serverSet) take(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == nil {
		s.taken = map[net.Conn]struct{}{}
	}
	s.taken[conn] = struct{}{}
}

func (s *serverSet) release(conn net.Conn) {
	s.mu.Lock()
	delete(s.taken, conn)
	s.mu.Unlock()
	conn.Close()
}

func newServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       5 * time.Minute,
		// A client's failed handshake is not worth a console line.
		ErrorLog:     log.New(io.Discard, "", 0),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
}

func (g *guest) servePlain(port int) error {
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	server := newServer(g.workloadHandler())
	g.servers.add(server)
	go func() { _ = server.Serve(listener) }()
	return nil
}

// powerOff ends the machine in order: no new connections, a FIN on every open
// one, and the power off only once those FINs are acknowledged.
func (g *guest) powerOff(why string) {
	g.stopOnce.Do(func() {
		g.console.Printf("powering off: %s", why)
		close(g.stopped)
		g.shim.mu.Lock()
		g.shim.stopped = true
		g.shim.mu.Unlock()
		g.servers.closeAll(400 * time.Millisecond)
		g.stopContainers()
		machine.WaitTCPClosed(300 * time.Millisecond)
		g.console.Printf("connections closed, power off")
		g.console.Flush(200 * time.Millisecond)
		machine.PowerOff()
	})
}

// closeAll gives running requests the grace to end by themselves.
func (s *serverSet) closeAll(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	s.mu.Lock()
	servers, relays := s.servers, s.relays
	s.mu.Unlock()
	for _, listener := range relays {
		listener.Close()
	}
	var all sync.WaitGroup
	for _, server := range servers {
		all.Add(1)
		go func(server *http.Server) {
			defer all.Done()
			if server.Shutdown(ctx) != nil {
				server.Close()
			}
		}(server)
	}
	all.Wait()
	s.mu.Lock()
	for conn := range s.taken {
		conn.Close()
	}
	s.mu.Unlock()
}

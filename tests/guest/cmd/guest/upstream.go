package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"

	"refguest/internal/conf"
	"refguest/internal/nets"
)

const dialLimit = 10 * time.Second

// upstream is what the shim lets through to: the program of its upstream container, or
// the played workload.
func (g *guest) upstream() http.Handler {
	played, real := g.workloadHandler(), g.proxy()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := g.upstreamContainer(); c == nil || c.Played() {
			played.ServeHTTP(w, r)
			return
		}
		real.ServeHTTP(w, r)
	})
}

func (g *guest) upstreamContainer() *conf.Container {
	w := g.current().workload
	for i := range w.Containers {
		if w.Containers[i].Name == w.Shim.UpstreamContainer {
			return &w.Containers[i]
		}
	}
	return nil
}

// proxy follows the public shim: whatever was asked for, the workload sees the host
// `localhost`, and the other in its own headers.
func (g *guest) proxy() http.Handler {
	return &httputil.ReverseProxy{
		FlushInterval: -1,
		Director: func(r *http.Request) {
			asked := r.Host
			r.URL.Scheme = "http"
			r.URL.Host = net.JoinHostPort(nets.Upstream().String(), strconv.Itoa(g.current().workload.Shim.UpstreamPort))
			r.Host = "localhost"
			r.Header.Set("Forwarded", fmt.Sprintf("host=%q", asked))
			r.Header.Set("X-Forwarded-Host", asked)
		},
		ErrorLog: log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			g.console.Printf("upstream: %v", err)
			shimError(w, http.StatusBadGateway, "The server had an error while processing your request.")
		},
	}
}

// publish opens the ports of a container that the firewall lets in: those that are
// declared as inbound.
func (g *guest) publish(p *plan, c *conf.Container) error {
	for _, port := range c.Ports {
		if !inbound(p.workload, port.Guest) {
			continue
		}
		links := p.nets.Links[c.Name]
		if len(links) == 0 {
			return fmt.Errorf("ports: it is on no network")
		}
		target := net.JoinHostPort(links[0].Address.IP.String(), strconv.Itoa(port.Container))
		listener, err := net.Listen("tcp", ":"+strconv.Itoa(port.Guest))
		if err != nil {
			return err
		}
		g.servers.addRelay(listener)
		go g.relay(listener, target)
	}
	return nil
}

func inbound(w *conf.Workload, port int) bool {
	for _, one := range w.CVMNetwork.InboundPorts {
		if one == port {
			return true
		}
	}
	return false
}

// relay passes every connection on. One that the container does not take is reset, as
// if nobody listened.
func (g *guest) relay(listener net.Listener, target string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			server, err := net.DialTimeout("tcp", target, dialLimit)
			if err != nil {
				_ = client.(*net.TCPConn).SetLinger(0)
				client.Close()
				return
			}
			g.servers.take(client)
			defer g.servers.release(client)
			defer server.Close()
			back := make(chan struct{})
			go func() { pour(client, server); close(back) }()
			pour(server, client)
			<-back
		}()
	}
}

// pour copies one direction, and passes its end on.
func pour(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.(*net.TCPConn).CloseWrite()
}

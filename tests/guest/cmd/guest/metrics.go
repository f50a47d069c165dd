package main

import (
	"math"
	"sync"

	"refguest/internal/machine"
)

// loadMeter measures the processor between two readings.
type loadMeter struct {
	mu          sync.Mutex
	busy, total uint64
}

// percent is the share of busy time since the last call, or since boot.
func (m *loadMeter) percent() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	busy, total := machine.CPUTimes()
	spent, passed := busy-m.busy, total-m.total
	m.busy, m.total = busy, total
	if passed == 0 {
		return 0
	}
	return int(math.Round(100 * float64(spent) / float64(passed)))
}

// metrics has the public contract's names; as there, memory is in GiB, and the
// GPU's values are null where there is none.
type metrics struct {
	ID          string   `json:"id"`
	Domain      string   `json:"domain"`
	Image       string   `json:"image"`
	CPUUtil     int      `json:"cpu_util"`
	GPUUtil     *int     `json:"gpu_util"`
	CPUMemUtil  float64  `json:"cpu_mem_util"`
	GPUMemUtil  *float64 `json:"gpu_mem_util"`
	CPUMemTotal float64  `json:"cpu_mem_total"`
	GPUMemTotal *float64 `json:"gpu_mem_total"`
	CPUType     string   `json:"cpu_type"`
	GPUType     *string  `json:"gpu_type"`
}

func (g *guest) metrics() metrics {
	total, available := machine.Memory()
	out := metrics{
		CPUUtil:     g.load.percent(),
		CPUMemUtil:  gib(total - available),
		CPUMemTotal: gib(total),
		CPUType:     machine.CPUVendor(),
	}
	if p := g.current(); p != nil {
		meta := p.external.Metadata
		out.ID, out.Domain = meta["id"], meta["domain"]
		if meta["repo"] != "" && meta["tag"] != "" {
			out.Image = meta["repo"] + "@" + meta["tag"]
		}
	}
	return out
}

func gib(bytes uint64) float64 {
	return math.Round(float64(bytes)/(1<<30)*1000) / 1000
}

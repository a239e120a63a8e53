module gosandbox.example/probe

go 1.19

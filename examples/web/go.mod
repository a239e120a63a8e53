module gosandbox.example/web

go 1.19

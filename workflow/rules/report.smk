# One self-contained page about the campaign.


rule report:
    input:
        config=ancient("results/{campaign}/config.yaml"),
        tables=campaigns.report_input,
    output:
        "results/{campaign}/report/index.html",
    log:
        "logs/{campaign}/report.log",
    benchmark:
        "results/{campaign}/timings/report.tsv"
    conda:
        "dao-pipeline"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        results=subpath(input.config, parent=True),
        settings=campaigns.settings("report"),
        code=stage_code_hash("report"),
    shell:
        "dao-pipeline report --config {input.config:q} --results {params.results:q} --out {output:q} > {log:q} 2>&1"
